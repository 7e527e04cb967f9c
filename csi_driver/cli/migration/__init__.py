"""``hayloft migrate``: manifests of other CSI drivers for object stores become manifests of this one.

``translation_rules.py`` has the vocabulary, ``mountpoint_rules.py``, ``gcsfuse_rules.py`` and ``csi_s3_rules.py`` the
tables of their options, ``volume_translation.py`` turns the options of one volume into parameters,
``manifest_rewriting.py`` finds the volumes in manifests, and ``yaml_documents.py`` reads and writes them.
"""
