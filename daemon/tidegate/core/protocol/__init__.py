"""All that crosses the border of a process, with the spelling that it keeps for ever."""
