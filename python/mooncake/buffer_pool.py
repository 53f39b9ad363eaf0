"""mooncake.buffer_pool: registered buffers by size class; to come. The names are there, and making a pool says that it is not supported yet."""

from mooncake._later import BufferLease, BufferLeaseView, BufferPool

__all__ = ["BufferLease", "BufferLeaseView", "BufferPool"]
