#!/bin/busybox sh
# shellcheck shell=dash
# The first program of the emulated machine, out of the initial files: mounts the root disk and goes on there.
b=/bin/busybox
$b mkdir -p /proc /sys /dev /root
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
while read -r module; do
	$b insmod "/modules/$module"
done </modules/order
tries=0
while [ ! -b /dev/vdb ] && [ $tries -lt 200 ]; do
	$b usleep 50000
	tries=$((tries + 1))
done
if ! $b mount -t ext4 -o noatime /dev/vda /root; then
	echo "the root disk cannot be mounted"
	$b poweroff -f
fi
$b mkdir -p /root/usr/lib/modules /root/vm
$b mount -t ext4 -o ro /dev/vdb /root/usr/lib/modules
$b mount -t tmpfs tmpfs /root/vm
$b cp /guest.sh /run.sh /root/vm/
for part in dev sys proc; do
	$b mount --move /$part /root/$part
done
exec $b switch_root /root /vm/guest.sh
