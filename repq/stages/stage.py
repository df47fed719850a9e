"""What a stage of a run is: its settings, what it reads, what it writes, and the function that does the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from repq.artifact import Artifact, Contents
from repq.identity import Identity, hash_json, identify
from repq.log import Log
from repq.progress import Progress
from repq.recipe.base import C
from repq.recipe.whole import Recipe, Section
from repq.results import Result
from repq.stages.context import Context

_SEEN_BY_ALL = ("data", "seed")
"""Parts of the recipe that every stage sees: the identity has the seed, and the content of the splits that are read."""


@dataclass(frozen=True)
class Job:
    """What a stage works with.

    Attributes:
        artifacts: of the stages before, by name.
        payload: folder for the files of this artifact.
        resume: folder for what a killed stage goes on from.
    """

    recipe: Recipe
    artifacts: Mapping[str, Artifact]
    payload: Path
    resume: Path
    progress: Progress
    log: Log

    def section(self, name: str, kind: type[C]) -> C:
        """A part of the recipe that is there."""
        found = getattr(self.recipe, name)
        assert isinstance(found, kind), f"the recipe's {name} is {found!r}"
        return found

    @property
    def data(self) -> Path:
        """The data.yaml: the recipe's own, or that of the drawn set."""
        own = self.recipe.data.path
        return self.artifacts["data"] / "demo/data.yaml" if own is None else own

    @property
    def context(self) -> Context:
        """What the recipe says of images, their size, AP and the device."""
        recipe = self.recipe
        return Context(
            recipe.imgsz, self.data, recipe.eval, recipe.data.train, recipe.data.val, recipe.graph, recipe.device,
            recipe.seed, self.progress, self.log,
        )  # fmt: skip

    @property
    def weights(self) -> Path:
        """The checkpoint that is fused: brought or trained here, and smaller where the run has pruned it."""
        if "prune" in self.artifacts:
            return self.artifacts["prune"] / "pruned.safetensors"
        own = self.recipe.weights
        return self.artifacts["train"] / "weights.safetensors" if own is None else own

    @property
    def fused(self) -> Path:
        """The float checkpoint of plain convolutions."""
        return self.artifacts["fuse"] / "fused.safetensors"

    @property
    def quantized(self) -> Path:
        """The checkpoint that is deployed: as calibrated, or trained after that."""
        return self.artifacts["qat" if "qat" in self.artifacts else "ptq"] / "quantized.safetensors"


def _first_section_is_given(recipe: Recipe, sections: Mapping[str, Section]) -> bool:
    return all(getattr(recipe, name) is not None for name in list(sections)[:1])


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage.

    Attributes:
        name: the stage, its folder, and the file of its result (``NAME.json``).
        run: does the work, and returns the result, which is written.
        sections: parts of the recipe that are this stage's own.
        uses: other parts of the recipe that the result depends on.
        reads: files of earlier artifacts that it reads, as globs ``STAGE/FILE``.
        splits: splits of the data set that it reads.
        result: type of the result.
        files: types of further results that it writes itself, by file name.
        ignored: globs of files that no other result depends on.
        on_machine: whether the result depends on the machine.
        augmented: whether it tests with augmentation where the recipe asks for that; others look at an image once.
        publish: where in the run folder a copy of its files is kept: ``.``, or a folder; None: nowhere.
        wanted: whether a run of this recipe has the stage; by default if the first of its sections is given.
        settled: gives the recipe with what it leaves to the machine, for the identity of the result.
        check: raises ValueError for recipes that contradict themselves.
    """

    name: str
    run: Callable[[Job], Result | None]
    sections: Mapping[str, Section] = field(default_factory=dict)
    uses: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    result: type[Result] | None = None
    files: Mapping[str, type[Result]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    on_machine: bool | Callable[[Recipe], bool] = False
    augmented: bool = False
    publish: str | None = None
    wanted: Callable[[Recipe], bool] | None = None
    settled: Callable[[Recipe], Recipe] = lambda recipe: recipe
    check: Callable[[Recipe], None] = lambda recipe: None

    def is_wanted(self, recipe: Recipe) -> bool:
        """Whether a run of this recipe has the stage."""
        return _first_section_is_given(recipe, self.sections) if self.wanted is None else self.wanted(recipe)

    def seen(self, recipe: Recipe) -> Recipe:
        """The recipe as this stage sees it: a part that it does not declare has its default.

        So no result can depend on a setting that is not in its identity.
        """
        declared = {*self.sections, *self.uses, *_SEEN_BY_ALL}
        fields = {name: field for name, field in type(recipe).model_fields.items() if name not in declared}
        hidden = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
        shown = recipe.model_copy(update=hidden)
        if self.augmented or shown.eval.tta is None:
            return shown
        return shown.model_copy(update={"eval": shown.eval.model_copy(update={"tta": None})})

    def open_to(self, artifacts: Mapping[str, Artifact]) -> dict[str, Artifact]:
        """The artifacts that hold a file that this stage reads: it gets no others, as with `seen`."""
        return {name: artifact for name, artifact in artifacts.items() if self._read(artifact)}

    def _read(self, artifact: Artifact) -> dict[str, str]:
        """What the files that it reads hold, by name."""
        globs, stage = (*self.reads, *(("data/*",) if self.splits else ())), artifact.manifest.stage
        contents = artifact.manifest.contents
        return {name: contents[name] for name in contents if any(fnmatch(f"{stage}/{name}", glob) for glob in globs)}

    @property
    def contents(self) -> Contents:
        """What its files are."""
        own = {} if self.result is None else {f"{self.name}.json": self.result}
        return Contents({**own, **self.files}, self.ignored)

    def identity(self, recipe: Recipe, artifacts: Mapping[str, Artifact], split: Callable[[str], object]) -> Identity:
        """What the result depends on.

        Args:
            split: gives what identifies the content of a split; None for the drawn set, which is an artifact.

        Raises:
            RepqError: a file that the recipe names cannot be read, or the machine cannot do what it wants.
        """
        recipe = self.settled(self.seen(recipe))
        settings = {name: getattr(recipe, name) for name in (*self.sections, *self.uses)}
        inputs: dict[str, object] = {f"{role} split": split(role) for role in self.splits}
        inputs |= {name: hash_json(self._read(artifact)) for name, artifact in self.open_to(artifacts).items()}
        on_machine = self.on_machine(recipe) if callable(self.on_machine) else self.on_machine
        return identify(self.name, settings, inputs, seed=recipe.seed, on_machine=on_machine)
