# make -j2 over a generated project of $1 C files: compilers start, work and end all the time.
set -e
mkdir tmp project
export TMPDIR=$PWD/tmp
cd project
main=
for i in $(seq "$1"); do
	{
		echo '#include <stdio.h>'
		echo '#include <stdlib.h>'
		echo '#include <string.h>'
		for f in $(seq 12); do
			echo "static unsigned f$f(unsigned x) { char b[64]; for (unsigned i = 0; i < $f + 9; i++) { x = x * 1664525u + $i;" \
				"b[i % 64] = (char)(x >> 24); if (x % $((f + 2)) == 0) x ^= (unsigned)b[x % (i + 1)]; } return x; }"
		done
		echo "unsigned part$i(unsigned x) { return f1(f2(f3(f4(f5(f6(f7(f8(f9(f10(f11(f12(x)))))))))))); }"
	} >part$i.c
	main="$main x = part$i(x);"
done
{
	for i in $(seq "$1"); do echo "unsigned part$i(unsigned);"; done
	echo '#include <stdio.h>'
	echo "int main(void) { unsigned x = 1; $main printf(\"%u\\n\", x); return 0; }"
} >main.c
cat >Makefile <<'M'
PARTS = $(patsubst %.c,%.o,$(sort $(wildcard *.c)))
all: sub
	$(MAKE) program
program: $(PARTS)
	gcc -O2 -o $@ $(PARTS)
%.o: %.c
	gcc -O2 -c -o $@ $<
sub:
	echo "made by a shell of make" > sub
M
touch ../ready
make -s -j2
{
	./program
	cat sub
	sha256sum -- *.o program
	ls ../tmp
} >../out
