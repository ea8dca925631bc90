# Tests of git itself that are about files, with their trees here.
# needs: perl
# source: git
here=$PWD
export TEST_NO_MALLOC_CHECK=1 GIT_SKIP_TESTS='t0001.40'
cd "$GIT/t"
for test in t0000-basic t0001-init t0021-conversion t0050-filesystem t1300-config t1400-update-ref t1450-fsck t2000-conflict-when-checking-files-out \
    t2021-checkout-overwrite t2400-worktree-add t3200-branch t3700-add t3903-stash t4104-apply-boundary t5000-tar-tree t5300-pack-object t5510-fetch \
    t5601-clone t6500-gc t7001-mv t7300-clean t7508-status t7600-merge t7519-status-fsmonitor; do
    file=$(ls $test*.sh)
    mkdir -p "$here/$test"
    TEST_OUTPUT_DIRECTORY="$here/$test" sh "./$file" --root="$here/$test" >"$here/$test/log" 2>&1 </dev/null || {
        grep '^not ok' "$here/$test/log" | sed "s/^/$test: /" | tee -a "$here/failed"
        grep -q '^not ok' "$here/$test/log" || { tail -3 "$here/$test/log" | sed "s/^/$test: /" | tee -a "$here/failed"; }
    }
done
[ ! -s "$here/failed" ]
