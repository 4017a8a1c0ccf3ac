"""Shell completion and the manual page, both written from the command line's parser."""
