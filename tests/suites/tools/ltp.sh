# What runtest/fs of LTP runs, each for a shorter time.
# source: ltp
fs=$LTP/testcases/kernel/fs
export TMPDIR=$PWD PATH="$PATH:$fs/doio:$fs/racer:$fs/linktest:$LTP/testcases/lib" LTPROOT=$LTP LTP_IPC_PATH=
try() {
    name=$1; shift
    mkdir -p "$name"
    (cd "$name" && timeout 900 "$@") >"$name.log" 2>&1 || { echo "$name: $?: $(grep -E 'FAIL|BROK|err' "$name.log" | head -3)" | tee -a failed; }
}
try growfiles growfiles -b -e 1 -u -i 0 -L 5 -w -C 1 -l -I r -T 10 -f glseek20 -S 2 -d .
try growfiles-seek growfiles -b -e 1 -u -r 1-5000 -R 0--1 -i 0 -L 5 -C 1 -f g_rand10 -S 2 -d .
try growfiles-pipe growfiles -b -e 1 -g 5000 -i 500 -t 49900 -T 10 -c 9 -I p -u -f gf07_ -d .
try growfiles-list growfiles -b -e 1 -u -r 1-5000 -i 0 -L 5 -C 1 -I l -f g_lio14 -S 2 -d .
try growfiles-sync growfiles -D 0 -b -i 0 -L 5 -u -B 1000b -e 1 -o O_RDWR,O_CREAT,O_SYNC -g 20480 -T 10 -t 20480 -f gf-sync -d .
try growfiles-sparse growfiles -b -D 0 -r 1-4096 -R 0-33554432 -i 0 -L 5 -C 1 -u -f gfsparse-3 -d .
try doio sh -c 'iogen -i 5s -s read,write 500b:doio.f1 1000b:doio.f2 | doio -akv -n 2'
try doio-mmap sh -c 'iogen -i 5s -s mmread,mmwrite -m random 500b:doio.f1 | doio -akv -n 2'
try openfile "$fs/openfile/openfile" -f10 -t10
for n in 1 2 3 4 5; do try "stream0$n" "$fs/stream/stream0$n"; done
for n in 1 2 3 4 5 6 7 8; do try "ftest0$n" "$fs/ftest/ftest0$n"; done
try inode01 "$fs/inode/inode01"
# Its shell library needs programs of testcases/lib.
command -v tst_timeout_kill >/dev/null && try linktest linktest.sh
try lftest "$fs/lftest/lftest" -n 20
[ ! -s failed ]
