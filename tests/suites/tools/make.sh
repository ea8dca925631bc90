# A program of a hundred files is built by four jobs; what is up to date is not built again, what changed is.
# needs: cc make
mkdir src
cat >Makefile <<'M'
objects = $(patsubst src/%.c,%.o,$(wildcard src/*.c))
program: $(objects)
	$(CC) -o $@ $^
	@echo linked >>built
%.o: src/%.c src/all.h
	$(CC) -c -o $@ $<
	@echo $@ >>built
M
echo 'int one(void);' >src/all.h
printf '#include <stdio.h>\n#include "all.h"\nint main(void) { printf("%%d\\n", f1()' >src/main.c
for n in $(seq 2 100); do printf ' + f%d()' "$n" >>src/main.c; done
printf '); return 0; }\n' >>src/main.c
for n in $(seq 100); do
    echo "int f$n(void);" >>src/all.h
    printf '#include "all.h"\nint f%d(void) { return %d; }\n' "$n" "$n" >"src/f$n.c"
done
make -s -j4
[ "$(./program)" = 5050 ]
[ "$(wc -l <built)" = 102 ]
make -q
sed -i 's/return 7;/return 8;/' src/f7.c
make -s -j4
[ "$(./program)" = 5051 ]
[ "$(wc -l <built)" = 104 ]
touch src/all.h
make -s -j4
[ "$(wc -l <built)" = 206 ]
make -s -j4
[ "$(wc -l <built)" = 206 ]
