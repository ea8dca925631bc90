# A tree packed here and unpacked here, with all that tar keeps, and compared with where it came from.
# needs: tar setfacl setfattr
source=$(mktemp -d /var/tmp/suites-XXXXXX)
trap 'rm -rf "$source"' EXIT
python3 -P "$SUITES/tree.py" "$source/tree"
all="--acls --xattrs --xattrs-include=user.* --sparse --numeric-owner"
tar $all -cf there.tar -C "$source" tree
tar $all -xpf there.tar
tar $all -df there.tar
tar $all -df there.tar -C "$source"
(cd "$source/tree" && find . -type f -exec sha256sum {} +) >sums
(cd tree && sha256sum --quiet -c ../sums)
tar $all -cf - tree | tar $all -xpf - -C "$source" --one-top-level=back
diff -r --no-dereference "$source/tree" "$source/back/tree"
rm -rf tree
[ ! -e tree ]
