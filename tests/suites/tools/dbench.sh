# The file operations of an office server's clients, with four processes.
# needs: dbench
dbench -D . -t 15 -c /usr/share/dbench/client.txt 4 >log 2>&1 || { tail log; exit 1; }
if grep -iE 'error|failed' log; then exit 1; fi
