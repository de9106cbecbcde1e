"""The vocabulary of pdray: plain data and errors. Imports the standard library only."""
