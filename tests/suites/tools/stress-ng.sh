# Stressors of stress-ng that are about files, one after another, with their own checks.
# needs: stress-ng
known=$(stress-ng --stressors)
for one in access chdir chmod chown copy-file dentry dir dirdeep dirmany dup fallocate fcntl filename flock fpunch fsize fstat getdent hdd iomix \
    lease link locka lockf lockofd metamix mknod mmap open readahead rename seek symlink sync-file touch utime xattr; do
    case " $known " in *" $one "*) ;; *) continue ;; esac
    code=0
    stress-ng "--$one" 2 --timeout 2 --verify --temp-path . --hdd-bytes 8m --iomix-bytes 8m --mmap-file --mmap-bytes 4m >log 2>&1 || code=$?
    # 3 and 4: it has no room here, or is not there.
    case $code in 0 | 3 | 4) ;; *) echo "$one: $code: $(grep -iE 'fail|err' log | head -2)" | tee -a failed ;; esac
done
[ ! -s failed ]
