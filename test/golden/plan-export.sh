#!/bin/sh
# Run 0badcafe of plan shop: boots a machine with qemu.
# usage: sh FILE db|web [OPTIONS OF QEMU...]
# a -- note
set -eu
machine=${1:-}; [ $# -eq 0 ] || shift
case $machine in
db) set -- \
  -name db -smp 4 -m 12288M \
  -bios "${OVMF:-/usr/share/ovmf/OVMF.fd}" \
  -drive 'if=none,id=disk0,file=/srv/dr,, it'\''s/pg-os.vhd,format=raw' \
  -device virtio-blk-pci,drive=disk0,bootindex=1 \
  -drive 'if=none,id=disk1,file=/srv/dr,, it'\''s/pg-data.vhd,format=raw' \
  -device virtio-blk-pci,drive=disk1 \
  -nic user,model=virtio-net-pci \
  -nic user,model=virtio-net-pci \
  -nic user,model=virtio-net-pci \
  "$@" ;;
web) set -- \
  -name web -smp 2 -m 8192M \
  -device ahci,id=sata0 \
  -drive 'if=none,id=disk0,file=/srv/dr,, it'\''s/web.vhd,format=raw' \
  -device ide-hd,bus=sata0.0,drive=disk0,bootindex=1 \
  -nic user,model=e1000e \
  "$@" ;;
*) echo "usage: $0 db|web [OPTIONS OF QEMU...]" >&2; exit 2 ;;
esac
exec qemu-system-x86_64 -machine "q35,accel=${ACCEL:-kvm:tcg}" -cpu max "$@"
