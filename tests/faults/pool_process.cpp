// A master or a storage node as a process of its own, for tests that kill it: `pool_process master|node <flags>`.
#include <cstring>

#include "master/master.h"
#include "store/node_process.h"

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  if (std::strcmp(argv[1], "master") == 0) return moonpool::master::run_master(argc - 1, argv + 1);
  if (std::strcmp(argv[1], "node") == 0) return moonpool::store::run_node(argc - 1, argv + 1);
  return 2;
}
