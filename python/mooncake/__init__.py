"""The drop-in for engines written for Mooncake: mooncake.store, mooncake.engine, mooncake.mooncake_config. Implemented by Moonpool."""
