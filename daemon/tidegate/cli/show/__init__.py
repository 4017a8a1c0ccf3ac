"""Text for people: everything that reaches a terminal goes through here."""
