// The gateway as a program of its own, for the tests: `moonpool gateway` without the rest of moonpool.
#include "gateway/gateway_main.h"

int main(int argc, char** argv) { return moonpool::gateway::run_gateway(argc, argv); }
