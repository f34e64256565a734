#!/bin/sh
# Boots a guest from a disk: Debian's cloud kernel and an initramfs of busybox, under qemu without hardware support.
# The disk holds an ext4 file system, which the guest mounts on /mnt. It runs SCRIPT, syncs, unmounts and powers off.
#
# usage: boot-guest.sh [DISK SCRIPT [COMMAND...]]     DISK: an image or an NBD URI
# COMMAND runs qemu with the disk and with the options that are added to it; by default, qemu itself.
# Prints what the guest prints. Ends with 0 when the guest unmounted the disk, with 77 and the reason when this
# machine lacks something. Without arguments it only looks whether it lacks something. The kernel is downloaded
# once, not installed, and kept in the user's cache folder.
set -eu
cache=${XDG_CACHE_HOME:-$HOME/.cache}/tidemark-tests/guest

lacks() {
  echo "$1" >&2
  exit 77
}
for program in qemu-system-x86_64 busybox cpio gzip; do
  command -v "$program" >/dev/null || lacks "$program is not installed"
done
! ldd "$(command -v busybox)" >/dev/null 2>&1 || lacks "busybox is not a static one"

tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
if [ ! -s "$cache/vmlinuz" ]; then
  mkdir -p "$cache/modules" "$tree/kernel"
  name=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image-[0-9]/{print $2; exit}')
  [ -n "$name" ] || lacks "apt knows no kernel for the guest"
  (cd "$tree" && timeout 60 apt-get download "$name" >/dev/null 2>&1) || lacks "apt cannot fetch the kernel $name"
  dpkg-deb -x "$tree"/*.deb "$tree/kernel"
  for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
    find "$tree/kernel" -name "$module.ko*" -exec cp {} "$cache/modules" \;
  done
  cp "$tree"/kernel/boot/vmlinuz-* "$cache/vmlinuz.$$"
  mv "$cache/vmlinuz.$$" "$cache/vmlinuz"
fi

[ $# -gt 0 ] || exit 0
disk=$1
script=$2
shift 2
[ $# -gt 0 ] ||
  set -- qemu-system-x86_64 -m 512 -drive "file=$disk,format=raw,if=virtio,discard=unmap,cache=none"
root=$tree/root
mkdir -p "$root/bin" "$root/proc" "$root/sys" "$root/dev" "$root/mnt" "$root/modules"
cp "$(command -v busybox)" "$root/bin/busybox"
find "$cache/modules" -type f -exec cp {} "$root/modules" \;
cat >"$root/init" <<GUEST
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc p /proc
mount -t sysfs s /sys
mount -t devtmpfs d /dev
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
  for file in /modules/\$module.ko*; do [ ! -e "\$file" ] || insmod "\$file"; done
done
until [ -b /dev/vda ]; do sleep 0.1; done
mount -t ext4 /dev/vda /mnt && {
$script
} && sync && umount /mnt && echo && echo GUEST-DONE
poweroff -f
GUEST
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$tree/initrd"
timeout 120 "$@" -nographic -no-reboot -kernel "$cache/vmlinuz" -initrd "$tree/initrd" \
  -append "console=ttyS0 panic=-1 quiet" </dev/null >"$tree/console" 2>&1 || true
tr -d '\r' <"$tree/console"
grep -q '^GUEST-DONE' "$tree/console"
