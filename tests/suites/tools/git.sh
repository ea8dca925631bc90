# A repository's life: commits, clones, worktrees at once, gc, repack, fsck.
# needs: git
export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
git init -q -b main one
cd one
for n in $(seq 30); do
    mkdir -p "d$((n % 5))"
    seq "$n" $((n * 50)) >"d$((n % 5))/f$n"
    git add -A
    git commit -q -m "$n"
done
git mv d1 moved
git commit -q -m moved
git tag v1
cd ..
git clone -q one two
git clone -q --bare --no-hardlinks one bare.git
git clone -q --shared one three
cd one
for n in 1 2 3; do git worktree add -q -b "w$n" "../tree$n"; done
pids=
for n in 1 2 3; do
    (
        cd "../tree$n"
        for k in $(seq 8); do
            echo "$n $k" >"new-$n-$k"
            git add -A
            git commit -q -m "tree $n, $k"
        done
    ) &
    pids="$pids $!"
done
for pid in $pids; do wait "$pid"; done
git merge -q -m merged w1 w2 w3
[ "$(git log --oneline | wc -l)" = 56 ]
git gc -q --aggressive --prune=now
git repack -q -a -d -f
git fsck --full --strict
git stash list
echo change >>moved/f1
[ "$(git status --porcelain)" = " M moved/f1" ]
git checkout -q moved/f1
git push -q ../bare.git main
git -C ../bare.git fsck --full
git -C ../two pull -q
git -C ../two diff --quiet origin/main
[ "$(git -C ../two rev-parse HEAD)" = "$(git rev-parse main)" ]
git bundle create -q ../all.bundle --all
git bundle verify -q ../all.bundle
git -C ../tree1 rebase -q --onto v1 HEAD~3
