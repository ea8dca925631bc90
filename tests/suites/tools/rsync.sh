# A tree with hard links, holes, ACLs, attributes and odd names there and back, compared by checksums.
# needs: rsync setfacl setfattr
source=$(mktemp -d /var/tmp/suites-XXXXXX)
trap 'rm -rf "$source"' EXIT
python3 -P "$SUITES/tree.py" "$source/tree"
rsync -aHAX --sparse "$source/tree/" there
rsync -aHAX there/ "$source/back"
for pair in "$source/tree/ there" "$source/tree/ $source/back"; do
    set -- $pair
    rsync -aHAXnci --delete "$1" "$2" >differ
    if [ -s differ ]; then head differ; exit 1; fi
done
rsync -aHAX --inplace --append-verify there/ here
rsync -aHAXnci --delete there/ here >differ
if [ -s differ ]; then head differ; exit 1; fi
