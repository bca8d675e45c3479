"""Rows to tokens: read, convert, clean, deduplicate, decontaminate, split, encode, batch.

sources ─ formats ─ clean ─ decontaminate ─ split      → load.load_domains → DomainData
encode  (template + tokenizer → EncodedRow)  →  batch  (plans and tensors)
"""
