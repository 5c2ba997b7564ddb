"""The decode worker: the one worker core, started in the decode role."""
