# Random reads and writes that carry checksums, of several jobs, by each way in which programs do I/O.
# needs: fio
check() {
    name=$1; shift
    fio --name="$name" --size=12m --bs=4k --rw=randrw --numjobs=2 --verify=crc32c --verify_fatal=1 --verify_dump=0 --group_reporting \
        --minimal "$@" >"$name.log" 2>&1 || { tail -5 "$name.log"; exit 1; }
    rm -f "$name".*.*
}
check psync --ioengine=psync
check sync-each --ioengine=psync --size=1m --fsync=4
check sizes --ioengine=psync --bsrange=512-256k --bs_unaligned=1
check mmap --ioengine=mmap
check libaio --ioengine=libaio --iodepth=16
check libaio-direct --ioengine=libaio --iodepth=16 --direct=1
check vectors --ioengine=pvsync2
check verify-late --ioengine=psync --rw=randwrite --verify_backlog=256
check trim --ioengine=psync --rw=write --verify=sha256 --bs=64k
