# Files written and synced by several threads.
# needs: fs_mark
mkdir d
fs_mark -d d -n 200 -s 10000 -t 3 -S 1 -l log >out 2>&1 || { tail out; exit 1; }
