"""The module that vLLM up to 0.8.4 imports its MooncakeDistributedStore and its transfer engine from."""

from mooncake.engine import TransferEngine, TransferOpcode
from mooncake.store import MooncakeDistributedStore, ReplicateConfig

__all__ = ["MooncakeDistributedStore", "ReplicateConfig", "TransferEngine", "TransferOpcode", "mooncake_vllm_adaptor"]


class mooncake_vllm_adaptor(TransferEngine):  # noqa: N801 - the name that vLLM 0.8 calls
    """The transfer engine under the method names of that time."""

    initializeExt = TransferEngine.initialize_ext  # noqa: N815
    allocateManagedBuffer = TransferEngine.allocate_managed_buffer  # noqa: N815
    freeManagedBuffer = TransferEngine.free_managed_buffer  # noqa: N815
    writeBytesToBuffer = TransferEngine.write_bytes_to_buffer  # noqa: N815
    readBytesFromBuffer = TransferEngine.read_bytes_from_buffer  # noqa: N815

    def transferSync(self, target_hostname: str, buffer: int, peer_buffer_address: int, length: int) -> int:  # noqa: N802
        """Reads from the peer into `buffer`."""
        return self.transfer_sync(target_hostname, buffer, peer_buffer_address, length, TransferOpcode.Read)
