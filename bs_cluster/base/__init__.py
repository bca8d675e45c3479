"""The frozen base: found or built, loaded in NF4, differentiated through, never changed."""
