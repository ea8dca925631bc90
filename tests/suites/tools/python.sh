# A package is installed here, compiled, and used from here.
# needs: python3
wheel=$(python3 -c 'import ensurepip, glob, os; print(glob.glob(os.path.join(os.path.dirname(ensurepip.__file__), "_bundled", "pip-*.whl"))[0])')
PYTHONPATH=$wheel python3 -m pip install -q --no-index --no-deps --no-cache-dir --target target "$wheel" 2>log || { tail -3 log; exit 1; }
python3 -m compileall -q -f -j 2 target
PYTHONPATH=target python3 -c 'import pip; assert "target" in pip.__file__'
[ "$(find target -name '*.py' | wc -l)" = "$(find target -name '*.pyc' | wc -l)" ]
python3 -m zipfile -c all.zip target
python3 -m zipfile -t all.zip >log
cat >dbm.py <<'P'
import shelve
for turn in range(3):
    with shelve.open("shelf") as shelf:
        shelf.update({str(n): [n, turn] for n in range(200)})
with shelve.open("shelf") as shelf:
    assert all(shelf[str(n)] == [n, 2] for n in range(200))
P
mv dbm.py shelf_test.py
python3 shelf_test.py
