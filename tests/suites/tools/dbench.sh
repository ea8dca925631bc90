# The operations of an office server's clients, with four processes.
# needs: dbench ipcmk
ipcmk -S 1 >/dev/null # it takes the number 0, which the first semaphore of a machine has, for an error
dbench -D . -t 15 -c /usr/share/dbench/client.txt 4 >log 2>&1 || { tail log; exit 1; }
if grep -iE 'error|failed' log; then exit 1; fi
