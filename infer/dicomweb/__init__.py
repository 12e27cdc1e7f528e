"""DICOMweb: series from a PACS, and segmentations into it. Imports nothing: needs the extra `dicomweb` when used."""
