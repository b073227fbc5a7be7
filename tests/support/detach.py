"""Detaches the links of programs, given by their ids, behind their owner's back; says how many there were."""
import ctypes, platform, struct, sys

BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
INFO_BY_FD, FD_BY_ID, NEXT_ID, DETACH = 15, 30, 31, 34
libc = ctypes.CDLL(None, use_errno=True)


def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes, 128)
    result = libc.syscall(BPF, command, buffer, 128)
    assert result >= 0, (command, ctypes.get_errno())
    return result, buffer.raw


def links():
    last = 0
    while True:
        try:
            last = struct.unpack_from("II", bpf(NEXT_ID, struct.pack("I", last))[1])[1]
        except AssertionError:
            return
        try:
            yield bpf(FD_BY_ID, struct.pack("I", last))[0]
        except AssertionError:
            # Another test's, which has ended.
            pass


def program(link):
    info = ctypes.create_string_buffer(256)
    bpf(INFO_BY_FD, struct.pack("IIQ", link, 256, ctypes.addressof(info)))
    return struct.unpack_from("III", info.raw)[2]


wanted = {int(word) for word in sys.argv[1:]}
found = [link for link in links() if program(link) in wanted]
detached = 0
for link in found:
    try:
        bpf(DETACH, struct.pack("I", link))
        detached += 1
    except AssertionError:
        # Only some kinds of links can be.
        pass
print(detached)
