"""Who does what could not be done at once: drains the inbox, and removes what is too old."""
