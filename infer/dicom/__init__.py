"""DICOM: series in, segmentations out.

Imports nothing: pydicom and highdicom are loaded by the modules of this folder, and those only when an input is DICOM.
"""
