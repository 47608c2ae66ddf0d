# perl, awk and sort over $1 thousand lines, as a shell would run them: pipes that are never empty, merge files, hashes.
set -e -o pipefail
mkdir tmp
touch ready
perl -e 'my $x = 1; for (1 .. 1000 * $ARGV[0]) { $x = ($x * 1103515245 + 12345) % 2147483648; printf "%d %08x word%d\n", $x % 100000, $x, $x % 977 }' "$1" |
	tee all | sort -n -k1,1 -k2,2 -S 8M --parallel=2 -T tmp >sorted
awk '{ n[$3]++; s[$3] += $1 } END { for (k in n) print k, n[k], s[k] }' sorted | LC_ALL=C sort >by-word
perl -ne 'my @f = split; push @{$h{$f[0] % 1000}}, $f[1]; END { for my $k (sort { $a <=> $b } keys %h) { print "$k @{[scalar @{$h{$k}}]} ", join(",", (sort @{$h{$k}})[0 .. 2]), "\n" } }' all >by-thousand
sort -u -k3,3 -S 4M -T tmp all | awk '{ print $3 }' | cmp - <(awk '{ print $1 }' by-word | sort)
sha256sum all sorted by-word by-thousand >out
