"""Pruning: channels that are coupled are found from the network itself and removed together; or single weights are."""
