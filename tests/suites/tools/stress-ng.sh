# The stressors of stress-ng's class of file systems, one after another, with their own checks. Left out is what is not about this file system.
# needs: stress-ng
stress-ng --class filesystem --sequential 2 --timeout 3 --verify --temp-path . --oomable \
    -x procfs,sysfs,fanotify,inotify,verity,binderfs,ramfs,loop,fd-race,dev-shm,memfd,acl >log 2>&1 || { grep -E 'fail|error' log | head -20; exit 1; }
if grep -E 'fail:|corrupt' log; then exit 1; fi
