# fsx by its ways of I/O, fsstress, aio-stress: the generators of xfstests.
# source: xfstests
"$XFSTESTS/ltp/fsx" -q -N 5000 -S 1 f1
"$XFSTESTS/ltp/fsx" -q -N 3000 -S 2 -l 1000000 f2
"$XFSTESTS/ltp/fsx" -q -N 2000 -S 3 -Z -r 4096 -w 4096 -t 4096 f3
"$XFSTESTS/ltp/fsx" -q -N 2000 -S 4 -W -R f4
"$XFSTESTS/ltp/fsx" -q -N 2000 -S 5 -A f5
"$XFSTESTS/ltp/fsx" -q -N 1000 -S 6 -y f6
"$XFSTESTS/ltp/fsstress" -d "$PWD/stress" -n 1000 -p 4 -s 1 >log 2>&1 || { tail log; exit 1; }
"$XFSTESTS/ltp/fsstress" -d "$PWD/stress" -n 300 -p 8 -s 2 -w >log 2>&1 || { tail log; exit 1; }
rm -r stress
"$XFSTESTS/ltp/aio-stress" -s 20m -r 64 -t 2 -O aio1 aio2 >log 2>&1 || { tail log; exit 1; }
