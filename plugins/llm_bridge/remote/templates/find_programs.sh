# Print the path of each program that is in PATH. `which` is no part of POSIX, and a minimal login node does not have it.
# usage: find_programs.sh NAME...
#
# transport.py joins these lines into one, as those of login_command.sh.
for name; do command -v "$name"; done; true
