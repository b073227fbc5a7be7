#!/bin/bash
# Process 1 of the emulated machine: what systemd would mount, then the command; what it prints, its exit code and what
# it leaves in /vm/out go to the outside. With `lab.systemd` on the kernel's command line systemd is started instead, and
# runs the command as a service.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root

# The command, and the end.
command() {
	bash /vm/run.sh
	code=$?
	tar -cf /dev/vm.files -C /vm/out .
	echo "$code" >/dev/vm.code
	sync
	busybox poweroff -f
}
[ "${1:-}" != command ] || command

mounted() {
	mkdir -p "$2"
	mount -t "$1" "$1" "$2"
}
mounted tmpfs /run
mounted tmpfs /tmp
mounted devpts /dev/pts
mounted tmpfs /dev/shm
mounted cgroup2 /sys/fs/cgroup
mounted bpf /sys/fs/bpf
mounted tracefs /sys/kernel/tracing
mounted debugfs /sys/kernel/debug

# The ports have names that udev would make files of.
for port in /sys/class/virtio-ports/*; do
	ln -s "/dev/${port##*/}" "/dev/vm.$(cat "$port/name")"
done
exec >/dev/vm.out 2>&1 </dev/null
read -r up _ </proc/uptime
echo "[vm] up: $(uname -r) after $up s"
hostname vm
modprobe -a virtio_net virtio_rng
ip link set lo up
mkdir -p /vm/out
# What came along, at the places where it is outside.
[ ! -b /dev/vdc ] || tar -xf /dev/vdc -C /
grep -qw lab.systemd /proc/cmdline || command
# It is not a target of the machine's own: nothing else is to be started that is not asked for.
mkdir -p /run/systemd/system
cat >/run/systemd/system/lab.service <<-END
	[Unit]
	Requires=basic.target
	After=basic.target
	[Service]
	ExecStart=/bin/bash /vm/guest.sh command
	StandardOutput=file:/dev/vm.out
	StandardError=inherit
END
exec /lib/systemd/systemd --unit=lab.service --show-status=no --log-target=null
