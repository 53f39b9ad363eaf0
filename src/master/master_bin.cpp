// The master alone, for its own tests; users run `moonpool master` or `mooncake_master`.
#include "master/master.h"

int main(int argc, char** argv) { return moonpool::master::run_master(argc, argv); }
