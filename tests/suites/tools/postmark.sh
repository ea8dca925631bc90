# Many small files: created, read, appended to, deleted.
# needs: postmark
printf 'set number 300\nset transactions 1000\nset subdirectories 10\nset size 500 30000\nset read 4096\nset write 4096\nset location .\nrun\nquit\n' >orders
postmark orders >log 2>&1
grep -q 'transactions' log || { tail log; exit 1; }
if grep -iE 'error|cannot' log; then exit 1; fi
