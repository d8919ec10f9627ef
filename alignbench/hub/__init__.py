"""Files from outside: where they are, whether they are the right ones, how they get here."""
