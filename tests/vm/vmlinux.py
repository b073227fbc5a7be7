#!/usr/bin/env python3
"""vmlinux.py VMLINUZ OUT: unpacks the kernel in a bzImage, as qemu's direct boot (PVH) wants it."""
import lzma
import struct
import subprocess
import sys
import zlib

image = open(sys.argv[1], "rb").read()
# Offset and length of the payload, behind the setup sectors (Documentation/arch/x86/boot.rst).
setup_sectors = image[0x1F1] or 4
offset, length = struct.unpack_from("<II", image, 0x248)
payload = image[(setup_sectors + 1) * 512 + offset :][:length]

if payload.startswith(b"\xfd7zXZ\0"):
    kernel = lzma.LZMADecompressor().decompress(payload)
elif payload.startswith(b"\x1f\x8b"):
    kernel = zlib.decompressobj(31).decompress(payload)
elif payload.startswith(b"\x28\xb5\x2f\xfd"):
    # The last four bytes are the length of what is unpacked.
    kernel = subprocess.run(["zstd", "-dcq"], input=payload[:-4], stdout=subprocess.PIPE).stdout
elif payload.startswith(b"\x02\x21\x4c\x18"):
    kernel = subprocess.run(["lz4", "-dcq"], input=payload[:-4], stdout=subprocess.PIPE).stdout
else:
    sys.exit(f"{sys.argv[1]}: compressed in a way that is not known: {payload[:8]!r}")
if not kernel.startswith(b"\x7fELF"):
    sys.exit(f"{sys.argv[1]}: what is in it is no ELF file")
open(sys.argv[2], "wb").write(kernel)
