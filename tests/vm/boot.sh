#!/bin/bash
# boot.sh [options] KERNEL COMMAND: boots a kernel of kernels.toml in an emulated machine and runs a shell command there
# as root. What it prints is shown, and its exit code is the script's. 124: it did not answer in time, or stands
# still; 125: the machine did not come up, or went down under it. Then the end of the kernel's console is shown.
#   -f FILES    a tar archive that is unpacked at / before
#   -t SECONDS  the time that the whole may take (300)
#   -b SECONDS  the time that booting may take (90)
#   -o FOLDER   where the files go that the command leaves in /vm/out
#   -q ARGS     more arguments for qemu
#   -a ARGS     more arguments for the kernel
set -euo pipefail
# shellcheck source=tests/vm/lab.sh
. "$(dirname "$0")/lab.sh"

files='' limit=300 boot_limit=90 out='' qemu_args=() kernel_args=''
while getopts f:t:b:o:q:a: option; do
	case $option in
	f) files=$(realpath "$OPTARG") ;;
	t) limit=$OPTARG ;;
	b) boot_limit=$OPTARG ;;
	o) out=$OPTARG ;;
	q) read -ra qemu_args <<<"$OPTARG" ;;
	a) kernel_args=$OPTARG ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))
kernel=$1 command=$2
work=$(mktemp -d "${TMPDIR:-/tmp}/vm.XXXXXX")
qemu=
cleanup() {
	end_awaited
	[ -z "$qemu" ] || kill -9 "$qemu" 2>/dev/null || true
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

# What the machine writes to its disk is kept in $work, at most what is free on the disk; and what it says.
free_space() {
	df --output=avail --block-size=1M "$work" | tail -1
}
if [ "$(free_space)" -lt 1024 ]; then
	echo "A machine needs 1 GiB in ${TMPDIR:-/tmp}, where$(free_space) MiB are free. Free some, or name another folder in TMPDIR." >&2
	exit 125
fi
await "$here/kernel.sh" "$kernel" >"$work/directory"
await "$here/image.sh" disk >"$work/disk"
directory=$(cat "$work/directory") disk=$(cat "$work/disk")

# The kernel takes several archives of initial files in a row. These have to be found at its root.
mkdir "$work/first"
cp "$here/init.sh" "$work/first/init"
cp "$here/guest.sh" "$work/first/guest.sh"
echo "$command" >"$work/first/run.sh"
chmod 755 "$work"/first/*
{
	cat "$directory/boot.cpio"
	(cd "$work/first" && find . -type f | cpio -o -H newc --quiet)
} >"$work/initrd"
# Told to the machine: otherwise it would stand still.
errors=werror=report,rerror=report
disks=(-drive "if=virtio,format=raw,file=$disk,snapshot=on,cache=unsafe,$errors"
	-drive "if=virtio,format=raw,file=$directory/modules.ext4,readonly=on,$errors")
[ -z "$files" ] || disks+=(-drive "if=virtio,format=raw,file=$files,readonly=on,$errors")
# Quiet for the console: what is said there is for the bad day.
append="console=ttyS0 quiet loglevel=4 panic=-1 oops=panic mitigations=off audit=0 random.trust_cpu=on tsc=reliable"
append+=" no_timer_check net.ifnames=0 unknown_nmi_panic $kernel_args"

# Emulated always: /dev/kvm may be there and not work, and with other kernels than this one's it does not.
# It dies with this script, whatever ends that; its temporary files (what is written to the disk) are in $work.
: >"$work/out"
TMPDIR=$work setpriv --pdeathsig KILL qemu-system-x86_64 -M q35,usb=off,smbus=off,sata=off,vmport=off \
	-accel tcg,thread=multi,tb-size=512 -cpu max -smp 2 -m 2G \
	-display none -nodefaults -no-user-config -no-reboot -serial "file:$work/console" \
	-monitor "unix:$work/monitor,server=on,wait=off" \
	-kernel "$directory/vmlinux" -initrd "$work/initrd" -append "$append" "${disks[@]}" \
	-device virtio-serial-pci \
	-chardev "file,id=out,path=$work/out" -device virtserialport,chardev=out,name=out \
	-chardev "file,id=files,path=$work/files.tar" -device virtserialport,chardev=files,name=files \
	-chardev "file,id=code,path=$work/code" -device virtserialport,chardev=code,name=code \
	-netdev user,id=net,restrict=on -device virtio-net-pci,netdev=net,romfile= \
	-object rng-random,id=random,filename=/dev/urandom -device virtio-rng-pci,rng=random \
	"${qemu_args[@]}" >"$work/qemu" 2>&1 </dev/null &
qemu=$!
tail -q -n +1 -s 0.2 --pid=$qemu -f "$work/out" 2>/dev/null &
shown=$!

# Lets a machine that does not answer tell where it stands: an interrupt that cannot be masked makes its kernel panic there.
interrupt() {
	timeout 10 python3 - "$work/monitor" >"$work/stands" 2>&1 <<'END' || true
import socket, sys
monitor = socket.socket(socket.AF_UNIX)
monitor.connect(sys.argv[1])
monitor.sendall(b"info registers -a\nnmi\nquit-not\n")
said = b""
while b"unknown command" not in said:
    said += monitor.recv(65536)
print(*(line for line in said.decode(errors="replace").split("\r\n") if line.startswith(("CPU#", "RIP="))), sep="\n")
END
	timeout 5 tail --pid=$qemu -f /dev/null || true
}

problem='' code=125 began=$SECONDS
while kill -0 $qemu 2>/dev/null; do
	if [ $((SECONDS - began)) -ge "$limit" ]; then
		problem="did not end within $limit s" code=124
	elif [ $((SECONDS - began)) -ge "$boot_limit" ] && ! grep -q '^\[vm\] up' "$work/out"; then
		problem="did not come up within $boot_limit s"
	elif [ "$(grep 'BUG: soft lockup' "$work/console" 2>/dev/null | wc -l)" -ge 3 ]; then
		problem="stands still" code=124
	else
		sleep 0.2
		continue
	fi
	interrupt
	kill -9 $qemu 2>/dev/null || true
	break
done
status=0
wait $qemu 2>/dev/null || status=$?
qemu=
wait $shown || true
if [ -z "$problem" ]; then
	if [ -s "$work/code" ]; then
		code=$(cat "$work/code")
	elif grep -q '^\[vm\] up' "$work/out"; then
		problem="went down while the command ran (qemu ended with $status)"
	else
		problem="did not come up (qemu ended with $status)"
	fi
fi
if [ -n "$out" ]; then
	mkdir -p "$out"
	cp "$work/console" "$out/console.log" 2>/dev/null || true
	tar -xf "$work/files.tar" -C "$out" 2>/dev/null || true
fi
if [ -n "$problem" ]; then
	{
		echo "[vm] kernel $kernel ($(cat "$directory/release")) $problem. The end of its console:"
		tail -n 60 "$work/console" 2>/dev/null | sed 's/^/    /'
		sed 's/^/    processors: /' "$work/stands" 2>/dev/null || true
		sed 's/^/    qemu: /' "$work/qemu"
	} >&2
fi
if [ "$(free_space)" -lt 16 ]; then
	echo "[vm] ${TMPDIR:-/tmp} is full: what the machine wrote may have failed." >&2
fi
exit "$code"
