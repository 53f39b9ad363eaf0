#!/bin/busybox sh
# The first process of the guest (soft_roce_vm.py): loads the modules, shows the host's files at /, read-only, with memory over what
# programs write to, runs the job that lies in the exchange folder, and switches the machine off.
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /host /lower
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

for module in $(cat /modules/order); do
  insmod "/modules/$module" || echo "moonpool guest: $module cannot be loaded"
done

shared=trans=virtio,version=9p2000.L,msize=524288
mount -t 9p -o "$shared,ro,cache=loose" host /lower || echo "moonpool guest: the host's files cannot be mounted"
mount --bind /lower /host
mount --bind /proc /host/proc
mount --bind /sys /host/sys
mount --bind /dev /host/dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=0620,ptmxmode=0666 devpts /host/dev/pts
for folder in /tmp /run /var/tmp /dev/shm; do
  mount -t tmpfs -o mode=1777 tmpfs "/host$folder"
done
mkdir -p /host/run/lock /host/run/moonpool
mount -t 9p -o "$shared,rw,cache=none" exchange /host/run/moonpool || echo "moonpool guest: the exchange folder cannot be mounted"
# A checkout below /tmp is hidden by now.
while read -r folder; do
  if [ ! -d "/host$folder" ]; then
    mkdir -p "/host$folder"
    mount --bind "/lower$folder" "/host$folder"
  fi
done </host/run/moonpool/folders

chroot /host /bin/bash /run/moonpool/job </dev/null
sync
poweroff -f
