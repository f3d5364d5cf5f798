"""What people run: one module for each command, whose `main(argv)` parses, builds, runs, reports.

The scripts of the repository and the console command `mindtwins` (`mindtwins/__main__.py`) are two
doors to them.
"""
