"""Import paths promised to users; what they name lives in `tinyllm.storage`."""
