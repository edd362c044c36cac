"""Model formats: how arrays become the bytes of a model and bytes become arrays again.

``arrays`` is all a client needs. ``npz`` checks updates, streams them and writes models in bounded memory;
it needs the ``combiner`` extra.
"""

from fedcombiner.modelstorage.formats.spec import Block, FormatError, ModelSpec, Reason, TensorSpec

__all__ = ["Block", "FormatError", "ModelSpec", "Reason", "TensorSpec"]
