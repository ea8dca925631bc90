# Money moved between accounts by several processes, with a rollback journal and with a write-ahead log.
# needs: python3
for journal in delete truncate persist wal; do
    python3 -P "$SUITES/transfers.py" "$journal" "bank-$journal" 3 60
done
