#!/bin/sh
# usage: guest_network.sh N
#
# N cables, each with a soft-RoCE NIC on both ends and a network of its own:
#
#   rxe0 on d0, 10.77.0.1  <-- veth -->  10.77.0.2, d1, rxe1
#   rxe2 on d2, 10.77.1.1  <-- veth -->  10.77.1.2, d3, rxe3   ...
#
# All ends belong to one machine, whose kernel would hand packets from one to the other over without any cable: by the rules below they go
# over the wire, so that after `ip link set d0 down` nothing passes any more, and rxe0 and rxe1 see their ports go down. Networks do not
# reach each other. A NIC reaches itself without a cable, as real ones do.
set -eu

cables=$(seq 0 $(($1 - 1)))
ends=$(seq 0 $((2 * $1 - 1)))

for cable in $cables; do
  echo "link add d$((2 * cable)) type veth peer name d$((2 * cable + 1))"
done | ip -batch -

for end in $ends; do
  cd "/proc/sys/net/ipv4/conf/d$end"
  echo 1 >accept_local
  echo 0 >rp_filter
  echo 1 >arp_ignore
  echo 2 >arp_announce
  echo 0 >"/proc/sys/net/ipv6/conf/d$end/accept_dad" # its link-local address can be used at once
done
echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter

{
  echo "link set lo up"
  # Packets that arrive are looked up among the local addresses as ever, those that leave only after the rules for cables.
  echo "rule add pref 100 lookup local"
  for cable in $cables; do
    net=10.77.$cable
    for host in 1 2; do
      end=d$((2 * cable + host - 1)) here=$net.$host there=$net.$((3 - host))
      echo "address add $here/24 dev $end"
      echo "link set $end up"
      echo "rule add pref 10 iif lo from $here to $there lookup main" # the network's route, which comes and goes with the link
      echo "rule add pref 11 iif lo from $here to $here lookup local"
    done
    echo "rule add pref 12 iif lo from $net.0/24 to 10.77.0.0/16 unreachable"
  done
  echo "rule del pref 0"
} | ip -batch -

for end in $ends; do
  rdma link add "rxe$end" type rxe netdev "d$end"
done
