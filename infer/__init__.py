"""Fast segmentation of NIfTI scans with one self-describing model file. Imports no framework.

The import is deliberately empty: `import seg.infer` costs nothing, and each module pays for what it uses.
"""

__version__ = "0.1.0"
