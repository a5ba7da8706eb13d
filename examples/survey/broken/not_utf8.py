# Written in Latin-1, and does not say so.
GREETING = "grья Gott"
