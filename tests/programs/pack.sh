# xz with two threads packs $1 MiB and unpacks them again.
set -e
awk -v n="$1" 'BEGIN { x = 1; for (i = 0; i < n * 16384; i++) { x = (x * 16807) % 2147483647; printf "%020d a line of %-30d\n", x, i } }' >big
touch ready
xz -T2 -2 --block-size=1MiB -k big
xz -T2 -dc big.xz | cmp - big
sha256sum big big.xz >out
exit 4
